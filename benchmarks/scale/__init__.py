"""How the cache behaves on more processes and sessions than one machine holds: a simulation."""
