"""The command line: one thin file per subcommand that parses, loads, calls one library function, saves and reports.

Modules here import nothing heavy at the top: `avtool --help` imports all of them and must stay quick.
"""
