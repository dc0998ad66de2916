// MartletReplication: see README.md of the target.
