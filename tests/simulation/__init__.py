"""Deterministic simulation of the write queue and its drain: the real code on a virtual clock, between a store and a
database that fail in every way we could think of, all of it driven by one seed.

The technique is that of FoundationDB and TigerBeetle. Simulated are time, the network, the two servers, processes that
are paused and killed, clients, operators and faults. Real are policy, circuit, prober, deadline, writer and drainer.

    python -m tests.simulation --seeds 10000        # make simulate SEEDS=10000
    python -m tests.simulation --seed 4711 --trace  # the timeline of one
"""
