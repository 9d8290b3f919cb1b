
# Backends, handlers, namespaces and pods, as the running crimux names them.
complete -c crimux -n "__fish_crimux_using_subcommand ps" -s b -l backend -x -a "(crimux names backends)"
complete -c crimux -n "__fish_crimux_using_subcommand ps" -l handler -x -a "(crimux names handlers)"
complete -c crimux -n "__fish_crimux_using_subcommand ps" -s n -l namespace -x -a "(crimux names namespaces)"
complete -c crimux -n "__fish_crimux_using_subcommand route" -f -a "(crimux names handlers)"
complete -c crimux -n "__fish_crimux_using_subcommand route" -l next -x -a "(crimux names pods)"
complete -c crimux -n "__fish_crimux_using_subcommand backend; and __fish_seen_subcommand_from drain undrain forget" -f -a "(crimux names backends)"
