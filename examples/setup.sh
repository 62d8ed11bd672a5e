# Sourced by the other scripts: makes .venv beside the README and installs avtool into it.
# usage: EXTRAS=demo,test; . examples/setup.sh
#
# torch is pinned in the same pip command as everything else, so that no second build of it is fetched for torchvision.
# PYTHON chooses the interpreter; TORCH another torch, for example TORCH="torch==2.13.0" or TORCH="torch".

PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}

if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "avtool needs Python 3.11 or newer; '$PYTHON' is not. Try: PYTHON=python3.12 sh $0" >&2
    exit 1
fi
if [ ! -x "$VENV/bin/python" ]; then
    echo "Making $VENV ..."
    "$PYTHON" -m venv "$VENV" || {
        echo "python3 -m venv failed; on Debian and Ubuntu: apt install python3-venv" >&2
        exit 1
    }
fi

# The stamp holds what the installation was made from: a second run has nothing to install.
stamp="$VENV/.avtool-$(echo "$EXTRAS" | tr , -)"
wanted="$(cksum < pyproject.toml) ${TORCH:-torch==2.13.0}"
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "Installing avtool (a few minutes the first time) ..."
    "$VENV/bin/python" -m pip install --quiet --quiet --disable-pip-version-check "${TORCH:-torch==2.13.0}" --editable ".[$EXTRAS]" || exit 1
    echo "$wanted" > "$stamp"
fi
PATH="$(cd "$VENV/bin" && pwd):$PATH"
export PATH
