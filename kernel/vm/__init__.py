"""The test VM: the host's own files under another kernel. `run` and `build` are its commands."""
