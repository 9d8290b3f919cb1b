
# Backends, handlers, namespaces and pods, as the running crimux names them.
_crimux_offer() {
    COMPREPLY=($(compgen -W "$(crimux names "$1" 2>/dev/null)" -- "$2"))
}

_crimux_with_names() {
    local cur="${COMP_WORDS[COMP_CWORD]}" prev="${COMP_WORDS[COMP_CWORD-1]}" before="" kind=""
    ((COMP_CWORD < 2)) || before="${COMP_WORDS[COMP_CWORD-2]}"
    case "${COMP_WORDS[1]}" in
        ps)
            case "$prev" in
                -b | --backend) kind=backends ;;
                --handler) kind=handlers ;;
                -n | --namespace) kind=namespaces ;;
            esac
            ;;
        route)
            case "$before $prev" in
                *" --next") kind=pods ;;
                "--next "*) kind=backends ;;
                *" route") kind=handlers ;;
            esac
            ;;
        backend)
            case "${COMP_WORDS[2]} $prev" in
                "drain drain" | "undrain undrain" | "forget forget") kind=backends ;;
                "drain --force" | "drain --wait" | "forget --force" | "forget --yes" | "forget -y") kind=backends ;;
            esac
            ;;
    esac
    if [[ -n "$kind" && "$cur" != -* ]]; then
        _crimux_offer "$kind" "$cur"
    else
        _crimux "$@"
    fi
}

complete -F _crimux_with_names -o bashdefault -o default crimux
