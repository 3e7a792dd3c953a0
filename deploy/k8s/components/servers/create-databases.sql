-- Runs once, when the data volume is empty. Every service has a database of its own, and makes its tables itself.
CREATE DATABASE dashboard;
CREATE DATABASE ai_core;
CREATE DATABASE webrtc;
