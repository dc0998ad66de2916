// MartletKafkaProtocol: see README.md of the target.
