"""Jobs of millions: inputs planned into shards, each scored once, whatever ends the process in between."""
