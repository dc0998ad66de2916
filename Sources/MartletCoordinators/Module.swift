// MartletCoordinators: see README.md of the target.
