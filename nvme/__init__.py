"""Storage below the disk: the I/O engines, and what a device can do."""
