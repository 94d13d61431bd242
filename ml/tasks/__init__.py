"""What a learning task is: targets, decoding, metrics, meaning of a score. numpy only."""
