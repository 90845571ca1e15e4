# search.bash - rounds of a search made by hand, for plan.bats, update.bats and bench-world.sh: no model, no judge.

# new_run FOLDER WIDTH K [POLICY]: run.json and the folder of the first tree.
new_run() {
	mkdir -p "$1/r00000"
	cat >"$1/run.json" <<-END
		{"made_by": {}, "run": "x", "task": "toy", "target": "cpu", "width": $2, "k": $3, "strategy": "world", "policy": "${4:-default}", "seed": "1",
		 "defaults": {"rounds": 100, "evals": 100, "provider": "manual", "model": ""}}
	END
}

# reply CUE STATUS TEXT: a reply document.
reply() {
	jq -n --arg cue "$1" --arg status "$2" --arg text "$3" '{made_by: {}, id: ("0" * 64), cue: $cue, status: $status, text: $text,
		provider: "manual", model: "", tokens_in: 1, tokens_out: 1, usd: 0, seconds: 1, tries: []}'
}

# action TITLE V: the members of a node.
action() {
	printf '"action": {"title": "%s", "difficulty_1_to_5": 2, "score_0_to_1": %s}' "$1" "$2"
}

# insert PARENT TITLE V: an operation.
insert() {
	printf '{"op": "insert_node", "parent": "%s", %s}' "$1" "$(action "$2" "$3")"
}

# verdict STATUS SCORE [VERSUS [CODE]]: a bench document; VERSUS is better, equal, worse or -; CODE a letter of the hash.
verdict() {
	local versus=null code=null
	[[ ${3:--} == - ]] || versus='{"name": "best", "code_sha256": null, "factor": 1, "z": 0, "verdict": "'$3'"}'
	[[ -z ${4:-} ]] || code=\"$(printf "%064d" 0 | tr 0 "$4")\"
	cat <<-END
		{"made_by": {}, "cue": null, "status": "$1", "rule": null, "message": "", "task": "toy", "source_sha256": null, "code_sha256": $code, "score": $2, "noise": 0.002,
		 "device": {"name": "d", "target": "cpu"}, "seconds": 2, "workloads": [], "versus": $versus, "failure": null}
	END
}

# first_tree FOLDER OPS: r00000/world.json.
first_tree() {
	reply init/0 answered "{\"ops\": [$2]}" >"$1/r00000/reply.json"
	"$KM/km-update" world --first --reply "$1/r00000/reply.json" -o "$1/r00000/world.json" "$1/run.json"
}

# round FOLDER N VERDICT...: plan round N, take the verdicts of the slots ("STATUS SCORE VERSUS CODE"; idle slots take
# none), the edit reply of slot K from the variable EDIT_K ("CUE STATUS TEXT"), write world.json.
round() {
	local folder=$1 number=$2 r k width before
	r=$folder/$(printf r%05d "$number")
	before=$folder/$(printf r%05d $((number - 1)))
	shift 2
	width=$(jq .width "$folder/run.json")
	mkdir -p "$r"
	"$KM/km-plan" -o "$r/plan.json" "$before/world.json" || return
	for ((k = 0; k < width; k++)); do
		local edit=EDIT_$k
		mkdir -p "$r/s$k"
		if [[ $(jq ".slots[$k].skip" "$r/plan.json") == null ]]; then
			# shellcheck disable=SC2086
			verdict $1 >"$r/s$k/bench.json"
			shift
		else
			echo '{"skip": "idle"}' >"$r/s$k/bench.json"
		fi
		if [[ -n ${!edit:-} ]]; then
			local cue status text
			read -r cue status text <<<"${!edit}"
			reply "$cue" "$status" "$text" >"$r/s$k/edit-reply.json"
		else
			echo '{"skip": "no cycle has ended in this slot"}' >"$r/s$k/edit-reply.json"
		fi
	done
	"$KM/km-update" world -o "$r/world.json" "$r/plan.json"
}
