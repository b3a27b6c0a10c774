"""The shells: sockets, processes and clocks live here and only here."""
