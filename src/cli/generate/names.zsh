# Backends, handlers, namespaces and pods, as the running crimux names them.
_crimux_names() {
    local -a names
    names=(${(f)"$(crimux names $1 2>/dev/null)"})
    compadd -a names
}

