"""Service defaults: settings, logs, telemetry, health, errors, HTTP app, gRPC server and channel."""
