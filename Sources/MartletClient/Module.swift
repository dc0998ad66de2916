// MartletClient: see README.md of the target.
