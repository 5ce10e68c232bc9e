//! Support for whole-system tests on the real kernel.
