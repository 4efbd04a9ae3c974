"""One trial trained again, and compared with its record to the bit."""
