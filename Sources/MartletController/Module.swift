// MartletController: see README.md of the target.
