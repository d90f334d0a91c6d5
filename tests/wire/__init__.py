"""Sessions over a real socket: a front-end in the test's thread, the back-end under trio in another."""
