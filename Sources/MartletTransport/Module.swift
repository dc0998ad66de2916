// MartletTransport: see README.md of the target.
