// MartletStorage: see README.md of the target.
