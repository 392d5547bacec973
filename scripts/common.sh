# Sourced by the scripts beside it: their arguments, the study's settings, how they end. Not run by itself.

fail() { # what was expected and what came, in one line
    printf 'error: %s; %s --help shows how to call it\n' "$1" "$0" >&2
    exit 2
}

# Reads "$@" into `output`, `configs`, `models` and `overrides`. A script names its other options first: of `numbers` and
# `flags` each goes into the variable of its name (--teacher-jobs: teacher_jobs), `lists` go to `passed` as they are.
read_arguments() {
    local name list number
    output="" configs=() models=() overrides=() passed=()
    while [ $# -gt 0 ]; do
        name=$1
        shift
        case "$name" in
            -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit ;;
            --) continue ;;
            --*=*) fail "${name%%=*}: expected a value after a space, got $name" ;;
            *=*) overrides+=("$name") && continue ;;
            --*) ;;
            *) fail "expected an option or key=value, got $name" ;;
        esac
        list=()
        while [ $# -gt 0 ] && [[ $1 != --* && $1 != *=* ]]; do list+=("$1") && shift; done
        if [[ " ${flags:-} " == *" $name "* ]]; then
            [ ${#list[@]} -eq 0 ] || fail "$name: expected no value, got ${list[*]}"
            name=${name#--} && printf -v "${name//-/_}" yes && continue
        fi
        [[ " --output --config --model ${numbers:-} ${lists:-} " == *" $name "* ]] || fail "unknown option $name"
        [ ${#list[@]} -gt 0 ] || fail "$name: expected a value, got none"
        if [ "$name" = --config ]; then
            configs+=("${list[@]}")
        elif [ "$name" = --model ]; then
            models+=("${list[@]}")
        elif [[ " ${lists:-} " == *" $name "* ]]; then
            passed+=("$name" "${list[@]}")
        else
            [ ${#list[@]} -eq 1 ] || fail "$name: expected one value, got ${list[*]}"
            number='^[1-9][0-9]*$'
            [[ $name != *-rate ]] || number='^[0-9]*\.?[0-9]*[1-9][0-9]*$'
            [ "$name" = --output ] || [[ ${list[0]} =~ $number ]] || fail "$name: expected a number above 0, got ${list[0]}"
            name=${name#--} && printf -v "${name//-/_}" %s "${list[0]}"
        fi
    done
    [ -n "$output" ] || fail "--output: expected a directory, got none"
    [ $((${#configs[@]} + ${#models[@]})) -gt 0 ] || fail "--config or --model: expected a name, got none"
}

# Leaves in `settings` what --train, --steps and --samples say, then the overrides. Warm-up and checkpoints keep their
# share of the run (50 and 200 of 1,000 steps in the published setting).
make_settings() {
    every=$((steps > 5 ? steps / 5 : 1))
    settings=("data.max_train_per_task=$train" "training.max_steps=$steps" "training.warmup_steps=$((steps / 20))"
        "training.save_steps=$every" "evaluation.max_samples=$samples" ${overrides[@]+"${overrides[@]}"})
}

each_model() { # FUNCTION; called with a name for the model, then the arguments that choose it
    local config model
    for config in ${configs[@]+"${configs[@]}"}; do "$1" "$(basename "$config" .yaml)" --config "$config"; done
    for model in ${models[@]+"${models[@]}"}; do "$1" "$(basename "$model")" "model.name=$model"; done
}

run_module() { # MODULE ARGUMENTS…; with accelerate launch where --processes was given
    if [ -n "${processes:-}" ]; then accelerate launch --num_processes "$processes" -m "$@"; else python -m "$@"; fi
}

stage() { printf '\n== %s\n' "$*"; }
