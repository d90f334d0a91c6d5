"""Tests that run under another kernel, in the test VM of kernel/vm."""
