"""How programs are compiled and how processes work together."""
