// MartletRecordBatch: see README.md of the target.
