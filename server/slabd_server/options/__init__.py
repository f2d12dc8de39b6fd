"""Options declared once: the mechanism. `slabd_server.config` declares slabd's own with it.

declare  an option, where its value may come from, and what is wrong with it
kinds    what values look like: sizes, addresses, users, modes
file     the TOML file
checks   options that contradict each other
tls      certificate files
text     what is generated from the declarations: the sample file, the README table, `slabd check-config`
"""
