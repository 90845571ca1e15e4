# The order in which POLICY=paper tries the frontier of a world.json, best first: jq -f select.jq world.json
([.nodes[] | {key: .id, value: .solution}] | from_entries) as $solution
| [.nodes[] | select(.status == "open" and (.parent == "root" or $solution[.parent] != null))]
| sort_by(.action.difficulty_1_to_5 > 4, -.action.score_0_to_1, .action.difficulty_1_to_5, -.overall_rating_0_to_10, .id)
| map(.id)
