# The order in which a search tries the frontier of a world.json, best first: jq -f select.jq world.json
([.nodes[] | {key: .id, value: .solution}] | from_entries) as $solution
| (if .settings.policy == "eager" then [.nodes[] | select(.status == "active" and .cycle.best != null) | {key: .id, value: 1}] else [] end | from_entries) as $working
| [.nodes[] | select(.status == "open" and (.parent == "root" or $solution[.parent] != null or $working[.parent] != null))]
| sort_by($working[.parent] != null, .action.difficulty_1_to_5 > 4, -.action.score_0_to_1, .action.difficulty_1_to_5, -.overall_rating_0_to_10, .id)
| map(.id)
