"""Parts of the shell scripts that compile a bundle on another machine."""

from __future__ import annotations


def own_copies(*patterns: str) -> str:
    """Lines of a POSIX shell script which replace files that have other names as well, hard links, by copies of their own.

    Weights of an artifact may be names of a checkpoint's files, or of another program's of the same artifact; readers of ONNX
    refuse external data with several names.

    Args:
        patterns: files of the script's working directory, as the shell writes them: ``*.safetensors``.
    """
    return f"""# Readers of ONNX refuse weights that are other names of a checkpoint's or another program's files.
for file in {" ".join(patterns)}; do
    if [ -f "$file" ] && [ "$(stat -c %h "$file")" -gt 1 ]; then
        cp -p "$file" "$file.copy" && mv "$file.copy" "$file" || exit 1
    fi
done
"""
