"""What tells an aligned pair apart beside motion: noise, light, blur, and what is in the way."""
