"""Service defaults: the only place where frameworks are configured.

settings      what the environment says            context       the request being answered
errors        the one table of errors              provenance    degradation on the wire
tokens        access tokens                        runtime       policies, background work, state
http          the HTTP application                 rpc_server    the gRPC server
rpc_client    channels and calls to other services telemetry     metrics and traces
logs          structured logs                      lifecycle     start, drain, stop
"""
