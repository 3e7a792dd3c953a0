"""Tests of the whole platform: real servers, real services, real faults."""
