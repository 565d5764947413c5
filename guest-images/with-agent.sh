# For recipes of guests that have the agent: a base recipe, and where it goes.

# The agent, where there is what it is built with.
agent_recipe() { ! command -v cargo >/dev/null || echo agent; }

# Puts the agent of artefact $1, if there is one, into root folder $2.
add_agent() { [ -z "$1" ] || cp "$1/tinyvmm-agent" "$2/bin/tinyvmm-agent"; }
