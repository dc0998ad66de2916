// MartletBroker: see README.md of the target.
