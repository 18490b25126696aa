"""Load on the running application: throughput and latency beside bare vLLM, and faults."""
