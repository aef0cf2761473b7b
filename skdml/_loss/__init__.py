"""What losses are made of: pairs, proxies, mining, memory, similarities, terms."""
