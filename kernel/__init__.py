"""Polling in and with the kernel: the wait set, the EVENTFD_SET_POLL interface, and what this host offers."""
