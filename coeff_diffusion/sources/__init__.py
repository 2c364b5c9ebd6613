"""Where subjects come from and go to: pictures that carry them, QR codes, the Hub, folders."""
