"""A TCP proxy that injects faults, with Toxiproxy's vocabulary and HTTP admin API (https://github.com/Shopify/toxiproxy),
so that the real Toxiproxy could take its place: ``python -m devstack.faultproxy -host H -port P -config proxies.json``.
"""
