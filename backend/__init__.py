"""The daemon: command line, configuration, devices, workers, logs and metrics."""
