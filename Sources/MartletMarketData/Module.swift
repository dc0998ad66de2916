// MartletMarketData: see README.md of the target.
