"""`mstkd bench`: how fast this machine runs the published and the shipped network, and what whole cases cost.

`command` runs all, `forward`, `forward_memory` and `shares` measure the network, `whole_path` the command, `growth` how
cost grows; `tables` and `growth_plot` show the figures, `timing`, `hardware`, `phantom` and `child` serve them.
"""
