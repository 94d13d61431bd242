"""Networks: an encoder, a pooling, a head; and which of their parameters train."""
