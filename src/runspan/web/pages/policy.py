"""What a page's headers allow: its own scripts, styles and data, and nothing from anywhere else."""

from __future__ import annotations

from typing import Final

POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "worker-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types runspan",
    )
)
"""No inline script or style and no ``eval``; text never becomes markup, for the browser refuses strings there."""

PAGE_HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    # With no-referrer a browser hides the page's origin from its own server too, and the login's form looks strange.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}

ASSET_HEADERS: Final = {
    "Cache-Control": "public, max-age=31536000, immutable",
    "Vary": "Accept-Encoding",
}
