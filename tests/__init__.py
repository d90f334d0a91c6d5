"""kpoll's tests; a package so that tests/vm can also be run as a program (`python -m tests.vm.demo`)."""
