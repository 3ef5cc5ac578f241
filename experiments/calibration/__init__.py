"""How often verdicts are right, on studies whose truth is planted."""
