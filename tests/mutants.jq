# All documents that a schema must refuse, made from one that it accepts: each required key dropped, each value given
# every type that is not allowed there, a value outside each enum, an unknown key where none may be.
#   jq -c --slurpfile schema tools/schema/run.json -f tests/mutants.jq tests/golden/state/run.json
$schema[0] as $root
| def resolve: if has("$ref") then $root.definitions[.["$ref"] | ltrimstr("#/definitions/")] else . end;
  def types: [.type // empty] | flatten;
  def places($schema; $path):
    ($schema | resolve) as $s
    | {path: $path, schema: $s, value: .},
      (if type == "object" then
        to_entries[] | .key as $key | ($s.properties[$key] // $s.additionalProperties) as $inner
        | select($inner | type == "object") | .value | places($inner; $path + [$key])
      elif type == "array" and $s.items then
        to_entries[] | .key as $key | .value | places($s.items; $path + [$key])
      else empty end);
  def allowed($types): . as $v | (type | IN($types[])) or (type == "number" and $v == ($v | floor) and ("integer" | IN($types[])));
  . as $document
  | [places($root; [])][] as $at
  | ($at.schema.required // [] | .[] | . as $key | select($at.value | type == "object" and has($key)) | $document | delpaths([$at.path + [$key]])),
    ([null, true, 1.5, "x", [], {}][] | select($at.schema.type and (allowed($at.schema | types) | not)) | . as $other | $document | setpath($at.path; $other)),
    (select($at.schema.enum) | ("none of them", 1.5, {}) as $other | $document | setpath($at.path; $other)),
    (select($at.schema.additionalProperties == false and ($at.value | type) == "object") | $document | setpath($at.path + ["unknown key"]; 1))
