"""Commands that go on until they are stopped, for a browser or another program to talk to."""
