"""Cases, laws and the oracle that implementations are tested against."""
