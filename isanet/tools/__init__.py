"""What is built on all the rest: self-test, demonstration, benchmark."""
